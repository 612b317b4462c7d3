"""The lessons as a student meets them who makes the typical mistakes.

A file of its own, because `--dist loadfile` gives all tests of a file to one worker, and these take minutes.
"""

import re

from lesson_student import mistakes
from test_lessons import each_played, play


@each_played
def test_each_mistake_is_named_and_the_lesson_goes_on(script, tmp_path):
    known = mistakes(script)
    for number in range(1, 1 + max(map(len, known.values()))):
        report = play(script, f"mistakes{number}", tmp_path)
        assert [cell["error"] for cell in report if cell["error"]] == []
        used = "\n".join(cell["out"] for cell in report if cell["kind"] == "solution")
        for piece, found in known.items():
            said = next(cell["out"] for cell in report if re.search(rf"^{piece} ", cell["out"], flags=re.M))
            mistake = found[min(number, len(found)) - 1]
            assert mistake["says"] in said, f"{piece}: {said}"
            assert re.search(rf"^{piece} \w+: yours fails .*; the solution is used", used, flags=re.M), piece
