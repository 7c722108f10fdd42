-- A process is alive. KEYS: processes, their counters, those that were found dead. ARGV: process.
-- Returns all three hashes.
local owners, beats, graves = KEYS[1], KEYS[2], KEYS[3]
if redis.call('HEXISTS', owners, ARGV[1]) == 1 and redis.call('HEXISTS', graves, ARGV[1]) == 0 then
    redis.call('HINCRBY', beats, ARGV[1], 1)
end
return {redis.call('HGETALL', owners), redis.call('HGETALL', beats), redis.call('HGETALL', graves)}
