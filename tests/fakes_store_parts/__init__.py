"""The rooms of ``FakeStore``, one for each group of ports, over the shared rows. Import ``tests.fakes_store``."""
