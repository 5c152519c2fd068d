"""What a YAML recipe may say."""
