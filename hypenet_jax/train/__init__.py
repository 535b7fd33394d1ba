"""Training: one step, one loop, one checkpoint format. Knows neither models nor methods; they
arrive in a Stage.
"""
