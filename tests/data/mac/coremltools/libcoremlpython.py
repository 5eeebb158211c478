"""In coremltools a library that only its wheels for macOS have."""
