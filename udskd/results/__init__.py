"""The files of finished runs, read and shown as tables and figures. Imports no training code."""
