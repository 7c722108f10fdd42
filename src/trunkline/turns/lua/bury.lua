-- Note that a process was found dead, and forget those of which that is noted for long.
-- KEYS: processes, their counters, those that were found dead. ARGV: process, milliseconds.
local owners, beats, graves = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('HEXISTS', owners, ARGV[1]) == 1 then
    redis.call('HSETNX', graves, ARGV[1], string.format('%.0f', now))
end
local found = redis.call('HGETALL', graves)
for i = 1, #found, 2 do
    if tonumber(found[i + 1]) < now - ARGV[2] then
        for _, key in ipairs(KEYS) do redis.call('HDEL', key, found[i]) end
    end
end
