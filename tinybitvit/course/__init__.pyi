from .checker import check as check
from .checker import tasks as tasks
from .plug import use as use
from .score import own as own
from .score import score as score
from .score import settled as settled
from .stage import apart as apart
from .submission import load as load
