"""Heads of dinoneck and of its peers on the same frozen backbone: score, CPU minutes, memory, lines, licence."""
