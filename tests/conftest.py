"""How hypothesis chooses examples: the same ones in every run, so that a change is judged by what it changed.

NBMF_EXPLORE=1 looks for new ones (`make explore`); what it finds becomes an example or a test of its own.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "nbmf",
    deadline=None,
    print_blob=True,
    derandomize="NBMF_EXPLORE" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("nbmf")
