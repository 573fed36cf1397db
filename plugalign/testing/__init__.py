"""The contract that every controller keeps, for the tests of whoever writes one."""

from plugalign.testing.contract import check_controller

__all__ = ["check_controller"]
