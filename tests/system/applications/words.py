"""An application of several functions, written as the SDK's documentation writes them."""

from pydantic import BaseModel
from tensorlake.applications import Image, RequestContext, Retries, application, cls, function

reading = Image(name="reading").run("pip install numpy")


class Report(BaseModel):
    words: int
    longest: str
    headline: str


@application(tags={"kind": "text"}, retries=Retries(max_retries=1))
@function(description="Reads pages side by side and reports on all of them.", timeout=60)
def report(pages: list[str]) -> Report:
    progress = RequestContext.get().progress
    progress.update(0, 2, message="reading")
    counted = count.map(pages)
    progress.update(1, 2)
    words = add.reduce(counted, 0)
    longest = Longest().of(pages)
    progress.update(2, 2)
    return Report(words=words, longest=longest, headline=headline(longest, words=words))


@function(description="Words of one page.", image=reading, max_containers=2, memory=0.5)
def count(page: str) -> int:
    return len(page.split())


@function(max_containers=2)
def add(total: int, more: int) -> int:
    return total + more


@cls(init_timeout=30)
class Longest:
    def __init__(self):
        self.shortest_word = 1

    @function()
    def of(self, pages: list[str]) -> str:
        words = [word for page in pages for word in page.split() if len(word) >= self.shortest_word]
        return max(words, key=len)


@function()
def headline(word: str, words: int) -> str:
    return capital.future(f"{word} and {words - 1} other words")  # a tail call


@function()
def capital(text: str) -> str:
    return text[0].upper() + text[1:]
