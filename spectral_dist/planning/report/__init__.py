"""What a dry run says: as text and JSON, and as an HTML page with drawings."""
