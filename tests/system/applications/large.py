"""A large argument and a large result, in functions that have the memory for them."""

import os

from tensorlake.applications import application, function


@application()
@function(memory=6, timeout=600)
def hands_over(megabytes: int) -> int:
    return len(give_back(os.urandom(1024 * 1024) * megabytes))


@function(memory=6, timeout=600)
def give_back(data: bytes) -> bytes:
    return data
