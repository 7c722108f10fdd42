-- ttl, whether to remove it if it is empty then, then names and values.
local step = redis.call('HMGET', KEYS[1], 'flow', 'state')
if ARGV[2] == '1' and #ARGV == 2 and not step[1] and not step[2] then
    return redis.call('DEL', KEYS[1])
end
replace(step[1], step[2], 3)
live(ARGV[1])
