"""Planning: what a configuration needs on devices that are described and not attached."""
