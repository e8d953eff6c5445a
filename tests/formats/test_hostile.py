"""Every format under fire: valid dumps with bytes changed, cut, doubled or swapped give samples or one line.

`FIRSTORDER_FUZZ=10000 pytest tests/formats/test_hostile.py` tries so many files; without it a few hundred.
"""

import os
import random
from pathlib import Path

import pytest
import writers_miles
import writers_nemo_rl
import writers_prime_rl
import writers_responses
import writers_skyrl
import writers_slime
import writers_verl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import made

from firstorder.core.errors import DataError
from firstorder.core.formats import neutral
from firstorder.core.formats.registry import open_dump

FILES = int(os.environ.get("FIRSTORDER_FUZZ", "400"))
SLOW = 20  # times as many of the others: Parquet is read in a process of its own
WRITERS = {
    "neutral": lambda folder, samples: neutral.write(folder / "a.parquet", samples),
    "prime-rl": writers_prime_rl.write,
    "nemo-rl": writers_nemo_rl.write,
    "slime": writers_slime.write,
    "miles": writers_miles.write,
    "skyrl": writers_skyrl.write,
    "verl": writers_verl.write,
    "vllm": lambda folder, samples: writers_responses.write(folder, samples, writers_responses.completion),
    "sglang": lambda folder, samples: writers_responses.write(folder, samples, writers_responses.generate),
}


def damaged(data, dice):
    """One to four changes of a file."""
    data = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        place, size = dice.randrange(len(data) + 1), dice.choice((1, 1, 2, 8, 64))
        match dice.randrange(5):
            case 0:
                del data[place:]
            case 1:
                data[place : place + size] = dice.randbytes(size)
            case 2:
                data[place:place] = data[place : place + size]
            case 3:
                del data[place : place + size]
            case 4:
                other = dice.randrange(len(data) + 1)
                data[place : place + size] = data[other : other + size]
        if not data:
            break
    return bytes(data)


@pytest.fixture(scope="module", params=WRITERS)
def valid(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](folder, made(seed=1, count=4, steps=1, longest=20))
    return request.param, {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_damaged_dump_gives_samples_or_one_line(valid):
    name, files = valid
    folder = Path(os.path.commonpath(files)) if len(files) > 1 else next(iter(files)).parent
    share = FILES // len(WRITERS) // (SLOW if name == "neutral" else 1)

    @settings(max_examples=max(5, share), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(seed=st.integers(0, 2**32))
    def fire(seed):
        dice = random.Random(seed)
        target = dice.choice([file for file, data in files.items() if data])
        target.write_bytes(damaged(files[target], dice))
        try:
            refused = None
            samples = list(open_dump([folder], name).samples())
        except DataError as error:
            refused = str(error)
        finally:
            target.write_bytes(files[target])
        if refused is None:
            assert all(len(sample.tokens) == len(sample.mask) for sample in samples)
        else:
            assert "\n" not in refused
            assert str(folder) in refused, refused

    fire()
