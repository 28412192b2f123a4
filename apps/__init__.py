"""The Streamlit demo; it talks to the facade of mmrec only."""
