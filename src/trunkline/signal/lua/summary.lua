-- How many entries each family has: family, count, family, count, …
-- KEYS[1]: the set of families. ARGV[1]: prefix of the families.
local counts = {}
for _, family in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    counts[#counts + 1] = family
    counts[#counts + 1] = redis.call('HLEN', ARGV[1] .. family)
end
return counts
