"""Retrieval: is what was stated in a long text there when it is needed?"""
