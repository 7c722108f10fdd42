-- The stored values, or nil, of some entries.
-- KEYS: hashes of families, one for each of the ids in ARGV.
local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('HGET', key, ARGV[i]) end
return found
