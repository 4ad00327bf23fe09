"""penult beside what people would take instead: see ``__main__``."""
