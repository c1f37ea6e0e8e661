"""What holds for every unit test."""

from hypothesis import HealthCheck, settings

# A busy machine may take any time over one example, and that is no fault of what is tested. The
# rest is as hypothesis has it, which in CI draws the same examples each time.
settings.register_profile(
    "patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")
