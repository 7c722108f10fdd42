-- Let sessions be due now whose due time was set by a clock that ran ahead; how many there were.
-- KEYS[1]: what the keys of the shard begin with.
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local due, count = KEYS[1] .. 'due', 0
for _, session in ipairs(redis.call('ZRANGEBYSCORE', due, '(' .. now, '(+inf')) do
    -- A version begins with the instant at which it was written.
    local version = redis.call('HGET', KEYS[1] .. 's:' .. session, 'v')
    if version and tonumber(string.match(version, '^%d+')) > tonumber(now) then
        redis.call('ZADD', due, now, session)
        count = count + 1
    end
end
return count
