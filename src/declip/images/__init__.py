"""Pictures: read with care, turned into what networks take, and shown with their maps."""
