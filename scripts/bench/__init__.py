"""Speed, as ratios against named alternatives that take turns in one run; `make bench` writes results/bench/."""
