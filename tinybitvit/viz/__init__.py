"""Pictures: what a ViT attends to, what quantisation does to it, and the plots of a study.

`attention` and `compare_attention` return data first, arrays with methods; these have `plot()` for a matplotlib Figure
and `to_html()` for an interactive page. matplotlib is imported by the first plot, not before.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
