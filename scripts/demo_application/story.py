"""The demonstration's application: three functions that call each other, each in a process of its own."""

from tensorlake.applications import application, function


@application()
@function(description="Counts the words of every line side by side and reports.")
def story(lines: list[str]) -> str:
    return report(lines, count.map(lines))


@function(max_containers=2)
def count(line: str) -> int:
    return len(line.split())


@function()
def report(lines: list[str], counts: list[int]) -> str:
    longest = max(zip(counts, lines, strict=True))
    return f"{sum(counts)} words in {len(lines)} lines; the longest: {longest[1]!r}"
