"""Jobs on Ray: photos → Parquet, and samples → the cache of frozen features. Needs `pip install 'declip[ray]'`."""

from declip.batch.driver import Summary, run
from declip.batch.rows import decode_mask, encode_mask

__all__ = ["Summary", "decode_mask", "encode_mask", "run"]
