"""Models that need no network."""

from __future__ import annotations

import pytest

from axon_zmq.errors import RequestError
from axon_zmq.worker.registry import offline_models


def test_synthetic_model_names_are_parsed():
    assert offline_models.pace_of("") == offline_models.Pace(50, 20, 5)
    assert offline_models.pace_of("tokens=3,delay_ms=0,size=1") == offline_models.Pace(3, 0, 1)
    for wrong in ("tokens=x", "tokens=-1", "tokens=1000001", "tokens", "size=0", "temperature=1"):
        with pytest.raises(RequestError, match="unknown_model"):
            offline_models.pace_of(wrong)
