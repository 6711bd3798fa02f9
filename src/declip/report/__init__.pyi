from .detectability import Detectability as Detectability
from .examination import Change as Change
from .examination import Opinion as Opinion
from .examination import Report as Report
from .examination import Stability as Stability
from .examination import Variant as Variant
from .examination import examine as examine
