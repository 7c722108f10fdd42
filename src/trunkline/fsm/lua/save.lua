-- ttl, flow, state, then names and values.
replace(ARGV[2], ARGV[3], 4)
live(ARGV[1])
