-- ttl, expected flow and state, new flow and state, whether to replace the data, then that.
local step = redis.call('HMGET', KEYS[1], 'flow', 'state', 'names')
local flow, state = step[1] or '', step[2] or ''
if flow ~= ARGV[2] or state ~= ARGV[3] then return {flow, state} end
if ARGV[6] == '1' then
    replace(ARGV[4], ARGV[5], 7)
else
    -- First: after a removal, a script may fill a server that is full already.
    redis.call('HSET', KEYS[1], 'names', step[3] or '')
    put('flow', ARGV[4])
    put('state', ARGV[5])
end
live(ARGV[1])
return false
