"""Other people's layouts of images and outlines, for python -m utils.tools.import_cases."""
