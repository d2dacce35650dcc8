"""The fixture `project` for all tests of jobs."""

from project_fixture import project

__all__ = ["project"]
