"""Base of search algorithms, the built-in one, and the helper for attributes of records."""

from workbench.engine.search.channel_plugins import GreedySearch, SearchChannelBase
from workbench.engine.search.channel_records import AttrProtoHelper

__all__ = ["AttrProtoHelper", "GreedySearch", "SearchChannelBase"]
