"""torch and torchao, for the tests that train; without them these tests skip."""

import pytest

from qcompile.errors import RuntimeMissingError
from qcompile.qat.libraries import check_libraries

try:
    check_libraries()
except RuntimeMissingError as error:
    pytest.skip(str(error), allow_module_level=True)
