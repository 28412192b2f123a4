"""Media to vectors: text, pictures, sound, their fusion and the bridges between spaces."""
