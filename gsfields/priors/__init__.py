"""What can be said about a video before any scene is fitted to it."""
