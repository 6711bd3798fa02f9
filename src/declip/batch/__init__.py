"""Jobs on Ray: photos → Parquet, and samples → the cache of frozen features. Needs `pip install 'declip[ray]'`."""

from declip.batch.driver import Summary, run
from declip.batch.features import Filled, fill_cache, recipe_for
from declip.batch.rows import decode_mask, encode_mask

__all__ = ["Filled", "Summary", "decode_mask", "encode_mask", "fill_cache", "recipe_for", "run"]
