-- Move the entries of trunkline 0.1, which knew no namespaces. What is stored already stays.
-- KEYS: the set of families of 0.1, the set of families. ARGV: prefix of the families of 0.1, prefix.
for _, family in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    local from, to = ARGV[1] .. family, ARGV[2] .. family
    redis.call('SADD', KEYS[2], family)
    if redis.call('EXISTS', from) == 1 and redis.call('RENAMENX', from, to) == 0 then
        for _, id in ipairs(redis.call('HKEYS', from)) do
            redis.call('HSETNX', to, id, redis.call('HGET', from, id))
        end
        redis.call('DEL', from)
    end
end
redis.call('DEL', KEYS[1])
