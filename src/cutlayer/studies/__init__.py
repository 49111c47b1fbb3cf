"""Questions asked before a run, or of many runs: what will it cost, and where should the model be cut?"""
