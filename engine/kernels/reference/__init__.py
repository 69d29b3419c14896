"""What each kernel computes, in slow and obvious PyTorch. The backends are tested against it."""
