"""Products in fp8, as DeepSeek-V3 trains (arXiv 2412.19437, section 3.3)."""
