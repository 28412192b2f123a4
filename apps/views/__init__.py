"""The pages: scripts that Streamlit runs from top to bottom. (It would take over a folder named `pages`.)"""
