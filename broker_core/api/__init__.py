"""The HTTP surface: what tokens may ask for, how bodies are read, how errors are answered; endpoints only translate.

Everything here reaches the use cases through one ``bootstrap.App``. It never imports ``dev``. Start at ``main.py``.
"""
