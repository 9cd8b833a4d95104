"""The page: layout and events, nothing computed."""
