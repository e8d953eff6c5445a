"""Where the tests of the command line keep what they share."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # fuzz.py, promotions.py


@pytest.fixture(scope="session")
def shape():
    """The sizes of the model that ships."""
    from firstorder.backends.promote import models

    return models.shape_of()


@pytest.fixture
def folder(tmp_path, shape):
    """The launchers of a bundle, whose recipe has a name that no scheduler would take."""
    from promotions import promotion_of

    from firstorder.backends.promote import bundle
    from firstorder.backends.promote.promotion import Job

    promotion = promotion_of(shape, time=86_400, job=Job(account="lab", partition="gpu,long"))
    about = promotion.recipe.about.model_copy(update={"name": "Qwen3 30B/r3"})
    promotion = replace(promotion, recipe=promotion.recipe.model_copy(update={"about": about}))
    for name, text in bundle.launchers(promotion).items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "engines.toml").write_text("")
    return tmp_path
