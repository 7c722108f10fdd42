-- The names of all entries: family, id, family, id, …
-- KEYS[1]: the set of families. ARGV[1]: prefix of the families.
local names = {}
for _, family in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    for _, id in ipairs(redis.call('HKEYS', ARGV[1] .. family)) do
        names[#names + 1] = family
        names[#names + 1] = id
    end
end
return names
