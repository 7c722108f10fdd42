-- Check what a commit expects, and store it wholly or not at all; whether it was stored.
-- KEYS: the set of families, the lock.
-- ARGV: prefix of the families, token of the lock or '', version, '1' to clear, expected number of
-- entries or '', number of expected versions; then those as family, id, version; then the changes as
-- family, id, '1' to set or '0' to delete, value.
local prefix, token, version, clear, entries = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if token ~= '' and redis.call('GET', KEYS[2]) ~= token then return 0 end
if entries ~= '' then
    local present = 0
    for _, family in ipairs(redis.call('SMEMBERS', KEYS[1])) do
        present = present + redis.call('HLEN', prefix .. family)
    end
    if present ~= tonumber(entries) then return 0 end
end
local i = 7
for _ = 1, tonumber(ARGV[6]) do
    local stored = redis.call('HGET', prefix .. ARGV[i], ARGV[i + 1])
    local present = '0'
    if stored then present = string.match(stored, '^(%d+):') end
    if present ~= ARGV[i + 2] then return 0 end
    i = i + 3
end
if clear == '1' then
    for _, family in ipairs(redis.call('SMEMBERS', KEYS[1])) do redis.call('DEL', prefix .. family) end
    redis.call('DEL', KEYS[1])
end
while i <= #ARGV do
    local family, id = ARGV[i], ARGV[i + 1]
    if ARGV[i + 2] == '1' then
        redis.call('SADD', KEYS[1], family)
        redis.call('HSET', prefix .. family, id, version .. ':' .. ARGV[i + 3])
    else
        redis.call('HDEL', prefix .. family, id)
    end
    i = i + 4
end
return 1
