"""The built-in text: made on the user's machine, without network; imported only where needed."""
