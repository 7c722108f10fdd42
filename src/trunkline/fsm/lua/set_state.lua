-- ttl, state, whether to remove it if it is empty then.
local stored = redis.call('HMGET', KEYS[1], 'names', 'flow')
local names = stored[1] or ''
if ARGV[3] == '1' and ARGV[2] == '' and names == '' and not stored[2] then
    return redis.call('DEL', KEYS[1])
end
if not stored[1] then redis.call('HSET', KEYS[1], 'names', '') end
put('state', ARGV[2])
live(ARGV[1])
