"""The page in a real browser, concept by concept."""

import pytest

pytest.register_assert_rewrite("tests.page.window")
