"""What the routes say."""
